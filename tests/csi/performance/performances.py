"""Performance keys that agree with each other, whatever the volume's size."""

from __future__ import annotations

from hypothesis import strategies as st

from csi.parameters.performance_keys import LEVELS, Performance
from csi.performance.limits import IO_SIZE

_counts = st.integers(1, 10**6)
_autopl = st.none() | st.just("AutoPL")
_bandwidths = st.none() | st.integers(IO_SIZE, 2**50)

performances = (
    st.just(Performance())
    | st.builds(Performance, _autopl, st.none() | _counts, st.none() | st.booleans())
    | st.builds(
        Performance, _autopl, _counts, st.none() | st.just(False), burst_iops=_counts, burst_credit=_counts
    )
    | st.builds(Performance, st.sampled_from(LEVELS), bursting=st.none() | st.just(False))
    | st.builds(Performance, st.sampled_from(LEVELS), burst_iops=_counts, burst_credit=_counts)
    | st.builds(Performance, read_iops=_counts, read_bandwidth=_bandwidths)
    | st.builds(Performance, read_bandwidth=st.integers(IO_SIZE, 2**50))
    | st.builds(
        Performance,
        read_iops=st.integers(1, 5),
        read_bandwidth=_bandwidths,
        burst_iops=st.integers(6, 10**9),
        burst_credit=st.integers(1, 10**12),
    )
)
