// KIVI_HD marks code that the CUDA compiler also compiles for the device; elsewhere it is empty.
#pragma once

#if defined(__CUDACC__)
#define KIVI_HD __host__ __device__
#else
#define KIVI_HD
#endif
