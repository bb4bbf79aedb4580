// The Python module rnnext._C: what the build is and which ISA runs. No tensor crosses it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>

#include "cpu/dispatch.h"

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

py::dict build_info() {
  py::dict info;
  info["torch"] = RNNEXT_TORCH_VERSION;
  info["compiler"] = compiler();
  info["isas"] = rnnext::isas_built();
  info["isas_supported"] = rnnext::isas_supported();
#ifdef RNNEXT_CUDA_ARCHS
  info["cuda_archs"] = RNNEXT_CUDA_ARCHS;
#else
  info["cuda_archs"] = "";
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  rnnext::kernels();  // a bad RNNEXT_CPU_ISA fails at import
  m.def(
      "cpu_isa", [] { return std::string(rnnext::kernels().name); },
      "The instruction set that the CPU kernels use.");
  m.def("set_cpu_isa", &rnnext::set_isa, py::arg("name"),
        "Use the CPU kernels of one instruction set. Raises ValueError if this CPU lacks it.");
  m.def("build_info", &build_info, "What this build is: torch, compiler, instruction sets, CUDA.");
}
