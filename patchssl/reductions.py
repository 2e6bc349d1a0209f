"""How much smaller than it is stored an image may be decoded."""

#: What a JPEG decoder can divide height and width by for less work.
REDUCTIONS = (1, 2, 4, 8)
#: Such a decoder averages blocks; with so many of its pixels for one that is wanted, what a good filter would have kept
#: apart from aliases is still there.
LEAST_OVERSAMPLING = 2
