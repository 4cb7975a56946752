"""The command-line programs `ocl_train`, `ocl_eval` and `ocl_compute_dataset_size`."""
