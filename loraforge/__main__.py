"""`python -m loraforge`, where the command itself is not on the path."""

from loraforge.cli import main

if __name__ == "__main__":
    main()
