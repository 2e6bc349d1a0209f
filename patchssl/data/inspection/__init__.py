"""What is in a data set: counts, sizes, kinds, damage, duplicates, leakage, and sheets of pictures to look at."""
