"""The operator page: a program of its own, a read-only subscriber of the bus like any other."""
