// The Python module rnnext._C: what the build is, which ISA runs, and the ops that modules call,
// without torch.ops, which takes 3 us to match a call with its schema and box its arguments: more
// than a step of a small RNN.
#include <ATen/PythonTorchFunctionTLS.h>
#include <c10/util/SmallVector.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "cpu/binding/stepper.h"
#include "cpu/isa/dispatch.h"
#include "ops/check.h"
#include "ops/fake.h"
#include "recurrence/nonlinearity.h"
#ifdef RNNEXT_CUDA_ARCHS
#include "cuda/binding/errors.h"
#endif

namespace py = pybind11;

// Python's `reverse`.
template <>
struct py::detail::type_caster<c10::List<bool>> {
  PYBIND11_TYPE_CASTER(c10::List<bool>, const_name("list[bool]"));
  bool load(handle source, bool) {
    for (const handle each : source) value.push_back(each.cast<bool>());
    return true;
  }
};

namespace {

// How an argument is held while an op runs: a Python list may change meanwhile.
template <class P>
using Held = std::conditional_t<std::is_same_v<P, at::TensorList>, c10::SmallVector<at::Tensor, 8>,
                                std::remove_cvref_t<P>>;

// Each load() returns whether the object has the argument's type, and sets the argument. (By hand,
// since pybind11's casters are slow for 19 arguments.)
bool load(PyObject* object, at::Tensor& value) {
  // A tensor, or parameter, that has no __torch_function__ of its own.
  const bool plain = THPVariable_CheckExact(object);
  if (plain) value = THPVariable_Unpack(object);
  return plain;
}
bool load(PyObject* object, std::optional<at::Tensor>& value) {
  return object == Py_None || load(object, value.emplace());
}
bool load(PyObject* object, Held<at::TensorList>& value) {
  if (!PyList_Check(object) && !PyTuple_Check(object)) return false;
  PyObject* const* const items = PySequence_Fast_ITEMS(object);
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(object);
  value.reserve(n);
  for (Py_ssize_t i = 0; i < n; ++i)
    if (!load(items[i], value.emplace_back())) return false;
  return true;
}
bool load(PyObject* object, bool& value) {
  value = object == Py_True;
  return PyBool_Check(object);
}
bool load(PyObject* object, int64_t& value) {
  int overflow = 0;
  if (PyLong_Check(object)) value = PyLong_AsLongLongAndOverflow(object, &overflow);
  return PyLong_Check(object) && !overflow;
}
bool load(PyObject* object, double& value) {
  if (PyFloat_Check(object)) value = PyFloat_AS_DOUBLE(object);
  return PyFloat_Check(object);
}
bool load(PyObject* object, std::string_view& value) {
  Py_ssize_t size = 0;
  const char* text = PyUnicode_Check(object) ? PyUnicode_AsUTF8AndSize(object, &size) : nullptr;
  if (!text) return PyErr_Clear(), false;
  value = {text, static_cast<size_t>(size)};
  return true;
}

// An op that modules call eagerly. It calls torch.ops.rnnext's if an argument is not plain or
// not of its type, or a mode comes first.
template <class Op, class Signature = typename Op::Signature>
struct Eager;
template <class Op, class Result, class... P>
struct Eager<Op, Result(P...)> {
  static constexpr const char* name = std::string_view(Op::name).substr(8).data();  // "rnnext::"

  static PyObject* call(PyObject*, PyObject* const* objects, Py_ssize_t n) {
    HANDLE_TH_ERRORS
    std::tuple<Held<P>...> arguments;
    PyObject* const* next = objects;
    const auto load_all = [&](auto&... each) { return (load(*next++, each) && ...); };
    if (n == sizeof...(P) && !at::impl::torch_function_mode_enabled() &&
        std::apply(load_all, arguments)) {
      const auto run = [](const auto&... each) {
        const py::gil_scoped_release no_gil;
        return rnnext::call_op<Op>(each...);
      };
      return py::cast(std::apply(run, arguments)).release().ptr();
    }
    const py::object op =
        py::module_::import("torch").attr("ops").attr("rnnext").attr(name).attr("default");
    return PyObject_Vectorcall(op.ptr(), objects, n, nullptr);
    END_HANDLE_TH_ERRORS
  }
};

// The op "rnn" for a module, with what `keys` find in its __dict__ (rnn.py), since looking it up in
// Python takes as long as a small step. Not implemented where one of them is kept elsewhere.
PyObject* rnn_of_module(PyObject*, PyObject* const* arguments, Py_ssize_t n) {
  const auto& [own, keys, input, hx, reset, reset_state, cell, nonlinearity] =
      *reinterpret_cast<PyObject* const(*)[8]>(arguments);
  PyObject* of[8];
  bool found = n == 8 && PyTuple_Check(keys) && PyTuple_GET_SIZE(keys) == 8;
  for (int i = 0; found && i < 8; ++i)
    found = (of[i] = PyDict_GetItem(own, PyTuple_GET_ITEM(keys, i)));
  const py::tuple weights(found && PyList_Check(of[1]) ? PyList_GET_SIZE(of[1]) : 0);
  for (size_t i = 0; found && i < weights.size(); ++i) {
    PyObject* const weight = PyDict_GetItem(of[0], PyList_GET_ITEM(of[1], i));
    PyTuple_SET_ITEM(weights.ptr(), i, Py_XNewRef(weight));
    found = weight;
  }
  if (!found) Py_RETURN_NOTIMPLEMENTED;
  static PyObject* const none = PyTuple_New(0);
  PyObject* const all[] = {input, hx,    weights.ptr(), of[2],   of[3],       of[4], of[5],
                           of[6], of[7], Py_None,       Py_None, Py_None,     reset, reset_state,
                           none,  cell,  none,          Py_None, nonlinearity};
  return Eager<rnnext::RnnOp>::call(nullptr, all, std::size(all));
}

template <auto function>
void define_fast(py::module_& m, const char* name) {
  static PyMethodDef method{name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function)),
                            METH_FASTCALL, nullptr};
  m.add_object(name, py::reinterpret_steal<py::object>(PyCFunction_New(&method, nullptr)));
}

// Raises the error that names the argument, which pybind11's would not.
at::Tensor tensor_of(py::handle object, const char* name) {
  if (!THPVariable_Check(object.ptr())) {
    py::dict argument;
    argument[name] = object;
    py::module_::import("rnnext._errors").attr("refuse_others")(argument);  // raises
  }
  return THPVariable_Unpack(object.ptr());
}

// A cell's state as Python has it, a tensor or, of an LSTM, a pair of them; and back.
std::vector<at::Tensor> states_of(const rnnext::Stepper& stepper, py::handle state) {
  if (stepper.state_count() == 1 || state.is_none()) return {tensor_of(state, "state")};
  const auto [h, c] = py::cast<std::pair<py::object, py::object>>(state);
  return {tensor_of(h, "state[0]"), tensor_of(c, "state[1]")};
}
py::object as_state(const std::vector<at::Tensor>& states) {
  return states.size() == 1 ? py::cast(states[0]) : py::make_tuple(states[0], states[1]);
}

// For rnnext/_fake.py: what the ops return without data, from their arguments and the number of
// sequences that begin a packed batch; and the other ops' checks.
void define_fakes(py::module_& m) {
  using Fakes = rnnext::RecurrencesOf<rnnext::Kept, c10::SymInt>;
  namespace fake = rnnext::fake;
  const auto define = [&](const char* name, auto& function) {
    m.def(name, torch::wrap_pybind_function(function));
  };
  define("fake_recurrence", Fakes::forward<fake::recurrence>);
  define("fake_recurrence_stack", Fakes::forward<fake::recurrence_stack>);
  define("fake_recurrence_ensemble", Fakes::forward<fake::recurrence_ensemble>);
  define("fake_recurrence_backward", Fakes::backward<fake::recurrence_backward>);
  define("fake_recurrence_ensemble_backward", Fakes::backward<fake::recurrence_ensemble_backward>);
  define("check_embedding", rnnext::check_embedding);
  define("check_embedding_gradient", rnnext::check_embedding_gradient);
  define("check_index_dtype", rnnext::check_index_dtype);
}

// A Stepper, unlike the ops, keeps the interpreter lock: two threads must not step it at once.
void define_stepper(py::module_& m) {
  using rnnext::Stepper;
  m.def("stepper", torch::wrap_pybind_function([](const std::vector<Stepper::Weights>& layers,
                                                  const std::optional<at::Tensor>& table,
                                                  const std::vector<Stepper::NamedTensor>& watched,
                                                  std::string_view nonlinearity,
                                                  std::string_view cell, int64_t batch_size) {
          return std::make_unique<Stepper>(layers, table, watched, nonlinearity, cell, batch_size);
        }));
  py::class_<Stepper>(m, "Stepper")
      // pybind11's __new__ would return an instance without a Stepper in it.
      .def_static("__new__",
                  [](const py::args&, const py::kwargs&) -> Stepper* {
                    throw py::type_error("a Stepper is made by rnnext.Stepper alone");
                  })
      .def("step", torch::wrap_pybind_function([](Stepper& s, py::handle input) {
             return s.step(tensor_of(input, s.input_name()));
           }))
      .def("step_from",
           torch::wrap_pybind_function([](Stepper& s, py::handle input, py::handle state) {
             auto [output, to] = s.step_from(tensor_of(input, s.input_name()), states_of(s, state));
             return std::pair(output, as_state(to));
           }))
      .def("get_state",
           torch::wrap_pybind_function([](Stepper& s) { return as_state(s.get_states()); }))
      .def("set_state", torch::wrap_pybind_function([](Stepper& s, py::handle state) {
             s.set_states(states_of(s, state));
           }))
      .def("reset", torch::wrap_pybind_function([](Stepper& s, py::handle mask) {
             if (mask.is_none()) return s.reset();
             s.reset(tensor_of(mask, "mask"));
           }));
}

py::dict build_info() {
  py::dict info;
  info["torch"] = RNNEXT_TORCH_VERSION;
#ifdef __clang__
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["isas"] = rnnext::isas(/*supported=*/false);
  info["isas_supported"] = rnnext::isas(/*supported=*/true);
#ifdef RNNEXT_CUDA_ARCHS
  info["cuda_archs"] = RNNEXT_CUDA_ARCHS;
#else
  info["cuda_archs"] = "";
#endif
  return info;
}

rnnext::Description plan(int64_t T, int64_t B, int64_t I, int64_t H, int D, int layers,
                         at::ScalarType dtype, int threads, bool train, bool hx,
                         const std::vector<int64_t>& lengths,
                         const std::optional<std::string>& machine, std::string_view cell) {
  const std::pair<const char*, int64_t> sizes[] = {
      {"T", T}, {"B", B}, {"H", H}, {"num_layers", layers}, {"threads", threads}};
  for (const auto& [name, size] : sizes) {
    TORCH_CHECK_VALUE(size > 0, name, " must be positive, got ", size);
    TORCH_CHECK_VALUE(size <= INT32_MAX, name, " must be less than 2^31, got ", size);
  }
  TORCH_CHECK_VALUE(D == 1 || D == 2, "directions must be 1 or 2, got ", D);
  TORCH_CHECK_VALUE(I >= 0, "I must not be negative, got ", I);
  TORCH_CHECK_VALUE(I <= INT32_MAX, "I must be less than 2^31, got ", I);
  const double work = static_cast<double>(T) * B * D * (I + H) * H;
  TORCH_CHECK_VALUE(work < 0x1p60, "T * B * D * (I + H) * H must be less than 2^60, got ", work);
  TORCH_CHECK_VALUE(lengths.empty() || static_cast<int64_t>(lengths.size()) == B,
                    "lengths must hold B = ", B, " numbers, got ", lengths.size());
  for (const int64_t length : lengths)
    TORCH_CHECK_VALUE(length >= 0 && length <= T, "lengths must be in 0..", T, ", got ", length);
  rnnext::Recurrence p;
  p.T = T, p.B = B, p.I = I, p.H = H, p.D = D;
  p.cell = rnnext::parse_cell(cell);
  if (hx) p.hx = &p;  // the plan asks only whether it is null
  if (!lengths.empty()) p.lengths = lengths.data();
  return rnnext::describe_plan(p, layers, rnnext::parse_dtype(dtype, "dtype"),
                               std::min(threads, rnnext::kMaxWorkers), train,
                               machine ? rnnext::machine_of(*machine) : rnnext::this_machine());
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  rnnext::kernels();       // a bad RNNEXT_CPU_ISA fails at import,
  rnnext::this_machine();  // and a bad RNNEXT_CPU_MACHINE
  m.def(
      "cpu_isa", [] { return std::string(rnnext::kernels().name); },
      "The instruction set that the CPU kernels use.");
  m.def("set_cpu_isa", &rnnext::set_isa, py::arg("name"),
        "Use the CPU kernels of one instruction set. Raises ValueError if this CPU lacks it.");
  const auto define_names = [&](const char* name, const auto& names, const char* about) {
    m.def(
        name, [&names] { return std::vector<std::string>(std::begin(names), std::end(names)); },
        about);
  };
  define_names("nonlinearities", rnnext::kNonlinearityNames, "The names that the ops take.");
  define_names("forms", rnnext::kFormNames, "The forms of a leak that the ops take.");
  m.attr("COUNTED_WORK") = rnnext::kCountedWork;
  m.attr("COUNTED_ROWS") = rnnext::kCountedRows;
  m.attr("PROJECTED_SHARE") = rnnext::kProjectedShare;
  m.attr("PROJECTED_ROWS") = rnnext::kProjectedRows;
  define_fast<rnn_of_module>(m, "rnn_of_module");
  define_fast<Eager<rnnext::RnnOp>::call>(m, "rnn");
  define_fast<Eager<rnnext::RnnCellOp>::call>(m, "rnn_cell");
  define_fast<Eager<rnnext::EmbeddingOp>::call>(m, "embedding");
  define_fast<Eager<rnnext::OccurringOp>::call>(m, "occurring");
  m.def("check_indices", torch::wrap_pybind_function([]([[maybe_unused]] int device) {
#ifdef RNNEXT_CUDA_ARCHS
          rnnext::cuda::index_errors(static_cast<c10::DeviceIndex>(device));
#endif
        }),
        py::arg("device"),
        "Raises IndexError if a call that is over on this GPU met an index out of range.");
  define_stepper(m);
  define_fakes(m);
  m.def("plan", &plan, py::kw_only(), py::arg("T"), py::arg("B"), py::arg("I"), py::arg("H"),
        py::arg("directions") = 1, py::arg("layers") = 1, py::arg("dtype"), py::arg("threads"),
        py::arg("train") = false, py::arg("hx") = false,
        py::arg("lengths") = std::vector<int64_t>{}, py::arg("machine") = std::nullopt,
        py::arg("cell") = "elman",
        "How the CPU kernels in use would share out a call: see rnnext.explain.");
  m.def("build_info", &build_info, "What this build is: torch, compiler, instruction sets, CUDA.");
}
