"""What a job would run, and where: pure functions of spec, site and machine."""
