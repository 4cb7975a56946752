"""The command-line programs, such as `ocl_train` and `ocl_eval`."""
