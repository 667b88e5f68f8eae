"""Models, servers and processes that several test suites share; nothing here is a test."""
