// A stack of layers by calls for each.
#pragma once

#include "ops/signatures.h"

namespace rnnext {

// recurrence_stack, layer by layer: what can be differentiated and mapped.
RecurrenceOp::Results layer_by_layer(const RecurrenceArguments& a, bool save);

}  // namespace rnnext
