"""`python -m assimilate` is the `assimilate` command."""

from assimilate.cli import main

if __name__ == "__main__":
    main()
