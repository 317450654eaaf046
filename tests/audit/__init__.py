"""Known vulnerabilities of the exact versions that `make install` takes. `make audit` runs it."""
