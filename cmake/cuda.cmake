# KIVI_CUDA: whether src/backend/cuda is built or src/backend/no_cuda is linked instead. On where there is an nvcc.

set(KIVI_CUDA_OLDEST 13.0)  # what it is tested with

find_program(CMAKE_CUDA_COMPILER NAMES $ENV{CUDACXX} nvcc PATHS /usr/local/cuda/bin)
mark_as_advanced(CMAKE_CUDA_COMPILER)
if(CMAKE_CUDA_COMPILER)
  option(KIVI_CUDA "Build the CUDA backend" ON)
else()
  option(KIVI_CUDA "Build the CUDA backend" OFF)
endif()

if(KIVI_CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR "KIVI_CUDA is ON, but there is no nvcc: put it on PATH, name it with CMAKE_CUDA_COMPILER, "
                        "or configure with -DKIVI_CUDA=OFF")
  endif()
  # Ampere and Hopper; the PTX of Hopper serves what comes after it.
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90 CACHE STRING "GPU architectures")
  if(KIVI_CCACHE)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${KIVI_CCACHE})
  endif()
  enable_language(CUDA)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS KIVI_CUDA_OLDEST)
    message(FATAL_ERROR "${CMAKE_CUDA_COMPILER} is CUDA ${CMAKE_CUDA_COMPILER_VERSION}: kivi needs "
                        "${KIVI_CUDA_OLDEST} or newer; configure with -DKIVI_CUDA=OFF to build without")
  endif()
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25.1 does not know that nvcc has it
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  find_package(CUDAToolkit REQUIRED)
  message(STATUS "CUDA backend: on (CUDA ${CMAKE_CUDA_COMPILER_VERSION}, ${CMAKE_CUDA_ARCHITECTURES})")
else()
  message(STATUS "CUDA backend: off")
endif()
