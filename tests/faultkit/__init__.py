"""Things that go wrong on purpose: cameras, engines, disks and clocks for the tests."""
