"""``python -m dmlbench``."""

from dmlbench.cli import main

if __name__ == "__main__":
    main()
