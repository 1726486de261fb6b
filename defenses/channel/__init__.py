from privbench.defenses.channel.attested import Attested
from privbench.defenses.channel.channel import Channel, ChannelLost, Message, Plaintext, Session, Setup, Turn

__all__ = ["Attested", "Channel", "ChannelLost", "Message", "Plaintext", "Session", "Setup", "Turn"]
