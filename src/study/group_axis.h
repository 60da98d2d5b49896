// How numbers are put into groups and what a reader of the groups sees: the cache's quantiser, on rows that stay as
// they are. What the study compares with each other is axes, and the packed format has one of each side only.
#pragma once

#include <cstdint>
#include <string_view>

#include "core/tensor_view.h"

namespace kivi {

// The paper's words: per token, a group is channels of one token; per channel, it is tokens of one channel.
enum class GroupAxis : uint8_t { kToken, kChannel };

constexpr std::string_view name(GroupAxis axis) {
  return axis == GroupAxis::kToken ? "token" : "channel";
}

struct Grouping {
  GroupAxis axis = GroupAxis::kToken;
  int bits = 2;
  int size = 32;  // channels or tokens; a last group may be smaller
};

// Replaces rows [tokens, channels] by what is read of them once they are packed: rounded to the codes of their groups,
// the first of which begins at the first row or channel.
void quantise_in_place(const TensorView<float, 2>& rows, const Grouping& grouping);

}  // namespace kivi
