"""The parts of suites: configuration, plan, and the tasks that they may name."""
