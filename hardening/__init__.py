"""What lets the Todo API stand in production, one promise a file. Skip it on a first reading."""
