"""What every room stands on: settings, database, event log, storage on disk, and the web kit."""
