from privbench.defenses.channel.channel import Channel, Message, Plaintext

__all__ = ["Channel", "Message", "Plaintext"]
