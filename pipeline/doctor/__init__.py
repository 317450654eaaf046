"""What `pruneonce doctor` looks at in a project's folder, a file for each subject. It reads only; its imports are small."""
