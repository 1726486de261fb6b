from privbench.defenses.channel.attested import Attested
from privbench.defenses.channel.channel import (
    Channel,
    ChannelLost,
    Plaintext,
    RoundRefused,
    Session,
    Setup,
    Turn,
)
from privbench.defenses.channel.message import Message
from privbench.defenses.channel.secagg import SecAgg

__all__ = [
    "Attested",
    "Channel",
    "ChannelLost",
    "Message",
    "Plaintext",
    "RoundRefused",
    "SecAgg",
    "Session",
    "Setup",
    "Turn",
]
