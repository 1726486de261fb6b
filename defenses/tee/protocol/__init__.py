"""The protocol of attested aggregation: what clients and the attested aggregator sign, seal and check.

``manifest`` is what all agree on before the first round, ``binding`` ties a report to it and to the clients' nonces,
``sealing`` is an update's way to the attested key, ``opening`` what the aggregator says when a round begins,
``receipts`` what it signs when the round ends.
"""
