"""The Triton programs of the GPU kernels; `cuda_selection`, `cuda_step` and `cuda_ragged` launch them."""
