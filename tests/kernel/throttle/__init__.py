"""What pods may read: both programs, cgroups as kubelet makes them (version 1 or 2, whichever the machine
has), and fio in them.

THROTTLE_IOPS (limits, comma separated), THROTTLE_PAIR (those of two pods on one image) and THROTTLE_SECONDS
(of each fio) say how fast and how long; in the emulated guest of `make test-guest` the limits are lower by
default.
"""
