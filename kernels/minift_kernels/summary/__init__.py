"""What is worth knowing of an array without keeping it: norm, mean, largest value, zeros, NaN, infinities, sizes.

    reference   one NumPy expression for each number, in float64
    numba_cpu   one launch, on all cores: sums as vector loops, sizes from the exponents of the bits

Norm, mean and largest value are those of the finite elements; what is not finite is counted. The histogram counts
magnitudes by powers of two: bin k holds 2^(LOWEST + k) <= |x| < 2^(LOWEST + k + 1), the first bin also all that is
smaller (but not 0), the last all that is larger. Powers of two because gradients spread over many orders of
magnitude, and because the edges do not depend on the array, so that histograms can be compared. It takes more time than
all the rest and is the only part that loses nothing by guessing: of an array of more than 65,536 elements it counts
every seventh, in C order.
"""

from minift_kernels.ladder import Ladder
from minift_kernels.summary import numba_cpu, reference
from minift_kernels.summary.reference import BINS, LOWEST, stride

__all__ = ["BINS", "LOWEST", "forward", "stride"]

ladder = Ladder("summary", {"reference": reference, "numba_cpu": numba_cpu})


def forward(x):
    """(moments, counts) of an array of any shape.

    moments (3,) float64: the norm sqrt(sum x^2), the mean (0 where nothing is finite), and the largest |x|.
    counts (3 + BINS,) int64: zeros, NaN, infinities, and then the histogram of the finite elements that are not 0.
    """
    return ladder.rung(x).forward(x)
