"""The parts of copy detection."""
