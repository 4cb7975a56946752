"""`python -m ocl_msf` is the command `ocl-msf`."""

from ocl_msf.cli import main

if __name__ == "__main__":
    main()
