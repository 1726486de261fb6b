"""Secure aggregation by masks that cancel in the sum (Bonawitz et al. 2017).

``encoding`` makes integers of an update, ``masks`` hides them, ``keys`` agrees on what masks come from, ``shares``
splits it among clients so that a drop-out's can be had back, ``client`` and ``server`` are the two ends of the
protocol, and ``session`` is the channel at work.
"""
