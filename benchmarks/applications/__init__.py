"""What people do with the matrix, on tasks with a known answer, beside what they use today."""
