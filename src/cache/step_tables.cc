#include "cache/step_tables.h"

#include <algorithm>

namespace kivi {
namespace {

constexpr int64_t kAlignment = 16;  // of the parts, in numbers
constexpr int64_t kRowAlignment = 4;
// Numbers that are rather uploaded with their neighbours than left out: about what a copy costs.
constexpr int64_t kGap = 8192;

int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace

StepTables::StepTables(Backend& backend, int64_t n_sequences, int64_t width)
    : backend_(&backend),
      n_sequences_(n_sequences),
      seq_begin_(round_up(n_sequences, kAlignment)),
      rows_(round_up(seq_begin_ + n_sequences + 1, kAlignment)),
      row_(round_up(width, kRowAlignment)),
      memory_(backend.allocate(static_cast<size_t>(rows_ + n_sequences * row_) * sizeof(int32_t))),
      image_(static_cast<size_t>(rows_ + n_sequences * row_)) {}

int32_t* StepTables::device(int64_t offset) const {
  return reinterpret_cast<int32_t*>(memory_->data()) + offset;
}

TensorView<const int32_t, 1> StepTables::n_past(int64_t n) const {
  return TensorView<int32_t, 1>(device(0), {n});
}
TensorView<const int32_t, 1> StepTables::seq_begin(int64_t n) const {
  return TensorView<int32_t, 1>(device(seq_begin_), {n + 1});
}
TensorView<const int32_t, 2> StepTables::table(int64_t n, int64_t column, int64_t width) const {
  return {device(rows_ + column), {n, width}, {row_, 1}};
}

void StepTables::begin() {
  n_added_ = 0;
  changed_.assign({{0, rows_}});  // the lengths are new in every step
}

void StepTables::add(int32_t n_past, int32_t n_new) {
  const int64_t b = n_added_++;
  image_[b] = n_past;
  image_[seq_begin_ + b + 1] = image_[seq_begin_ + b] + n_new;
}

void StepTables::set_row(std::span<const int32_t> row) {
  const int64_t offset = row_offset(n_added_ - 1);
  std::ranges::transform(row, image_.begin() + offset, [](int32_t page) { return std::max(page, 0); });
  changed(offset, offset + row_);
}

void StepTables::set_columns(std::span<const int32_t> row, std::span<const int32_t> columns) {
  if (columns.empty()) return;
  const int64_t offset = row_offset(n_added_ - 1);
  for (const int32_t column : columns) image_[offset + column] = row[static_cast<size_t>(column)];
  const auto [low, high] = std::minmax_element(columns.begin(), columns.end());
  changed(offset + *low, offset + *high + 1);
}

void StepTables::end() {
  std::fill(image_.begin() + n_added_, image_.begin() + n_sequences_, 0);
  std::fill(image_.begin() + seq_begin_ + n_added_ + 1, image_.begin() + seq_begin_ + n_sequences_ + 1,
            image_[seq_begin_ + n_added_]);
  for (const Range& range : changed_) {
    backend_->copy_to_device(device(range.begin), image_.data() + range.begin,
                             static_cast<size_t>(range.end - range.begin) * sizeof(int32_t));
  }
}

void StepTables::changed(int64_t begin, int64_t end) {
  if (begin > changed_.back().end + kGap) changed_.push_back({begin, end});
  changed_.back().end = end;
}

}  // namespace kivi
