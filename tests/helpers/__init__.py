"""What several tests share: fakes, factories of files, servers, and programs that a test starts."""
