"""The parts of correspondence: views of known geometry, and which patches are found again."""
