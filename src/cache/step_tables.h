// What kernels read about the sequences of a step: block tables, lengths and row borders, in one block of device memory
// at a fixed address, with an image on the host. A row of the tables stays with its sequence from step to step; what
// has changed is uploaded in few copies.
//
//   i32   n_past [n_sequences] | seq_begin [n_sequences + 1] | rows [n_sequences][width]
//
// A row holds the tables of a sequence side by side; its owner knows which column is what.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "core/tensor_view.h"

namespace kivi {

class StepTables {
 public:
  StepTables(Backend& backend, int64_t n_sequences, int64_t width);

  // One step: begin(), the rows of its sequences in order, end(). Sequences beyond those of the step are padding: no
  // tokens, no rows.
  void begin();
  void add(int32_t n_past, int32_t n_new);
  // Of the sequence added last: the whole row, or the columns of it that have changed since it was here last. Where it
  // has no page the table says page 0: kernels may read ahead.
  void set_row(std::span<const int32_t> row);
  void set_columns(std::span<const int32_t> row, std::span<const int32_t> columns);
  void end();

  // For the first n sequences.
  TensorView<const int32_t, 1> n_past(int64_t n) const;
  TensorView<const int32_t, 1> seq_begin(int64_t n) const;  // [n + 1]
  TensorView<const int32_t, 2> table(int64_t n, int64_t column, int64_t width) const;
  const std::shared_ptr<const Buffer>& memory() const { return memory_; }

 private:
  int32_t* device(int64_t offset) const;
  int64_t row_offset(int64_t b) const { return rows_ + b * row_; }
  void changed(int64_t begin, int64_t end);

  Backend* backend_;
  int64_t n_sequences_;
  int64_t seq_begin_;  // offsets of the parts
  int64_t rows_;
  int64_t row_;  // width of a row, padded
  std::shared_ptr<const Buffer> memory_;
  std::vector<int32_t> image_;
  int64_t n_added_ = 0;
  struct Range {
    int64_t begin;
    int64_t end;
  };
  std::vector<Range> changed_;  // of the image, ascending
};

}  // namespace kivi
