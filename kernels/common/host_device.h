// Marks what runs on the host and in CUDA kernels alike.
#pragma once

#ifdef __CUDACC__
#define PALIMPSEST_HOST_DEVICE __host__ __device__
#else
#define PALIMPSEST_HOST_DEVICE
#endif
