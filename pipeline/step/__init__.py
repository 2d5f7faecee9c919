"""One optimizer step: engine, optimizer, schedule, timing."""
