// Twin of torch's header: an error of the host layer says what a kernel did wrong.
#pragma once

#include <c10/util/Exception.h>

extern "C" const char* cuda_host_error();

#define C10_CUDA_CHECK(call) TORCH_CHECK((call) == cudaSuccess, cuda_host_error())
