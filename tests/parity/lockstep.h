// A batch of sequences on the reference and, in lockstep, on every device of a family: the same steps, attention
// compared row by row, then all bytes of the caches.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "attend_tolerance.h"
#include "backend/reference/paged.h"
#include "core/error.h"
#include "format/group_params.h"
#include "paged_batch.h"

namespace kivi::parity {

using reference::Row;

// Rows that belong to no sequence, at the end of some steps.
constexpr int kPaddingRows = 3;

enum class Numbers {
  kLoud,      // normal, keys with a few loud channels, now and then a constant row
  kConstant,  // keys that do not change for a while, values the same in all channels
  kHalves,    // values of a group unlike in its halves
  kPeaked,    // queries that pick one token each: a value must come out as it is stored
  kSpecial,   // infinities, NaN, both zeros, the smallest and the largest: stored, not attended to
};

// The rows of one step, [n_rows][heads][head_dim], as numbers of the 16-bit dtype.
struct StepRows {
  std::vector<int32_t> seq_begin;  // [B + 1]
  int64_t n_rows = 0;              // with padding
  std::vector<float> q;
  std::vector<float> kv;  // keys of all heads, then values of all heads
};

// Devices that store the same bytes.
struct Family {
  format::CodeOrder order;
  DType dtype;  // of the window, and of the activations unless these are f32
  std::vector<std::string> devices;
};

inline std::vector<Family> find_families() {
  std::map<std::pair<format::CodeOrder, DType>, std::vector<std::string>> found;
  for (const std::string& device : available_devices()) {
    if (device == "reference") continue;
    const auto backend = make_backend({.device = device, .n_threads = 2});
    const bool f32 = backend->activation_dtype() == DType::kF32;
    for (const DType dtype : {DType::kF16, DType::kBF16}) {
      if (!f32 || dtype == DType::kF16) found[{backend->code_order(), dtype}].push_back(device);
    }
  }
  std::vector<Family> all;
  for (auto& [key, devices] : found) all.push_back({key.first, key.second, std::move(devices)});
  return all;
}

// One device of a family, and its cache.
struct Device {
  Device(const std::string& device_name, const CacheCase& which, const Family& family, int n_sequences,
         int64_t max_tokens)
      : name(device_name),
        backend(make_backend({.device = device_name, .n_threads = 2})),
        cache(*backend, which, family.dtype, family.order, n_sequences, max_tokens) {}

  DType activation(const Family& family) const {
    return backend->activation_dtype() == DType::kF32 ? DType::kF32 : family.dtype;
  }

  std::string name;
  std::unique_ptr<Backend> backend;
  PagedBatch cache;
  double largest_error = 0;  // of attention, as a part of what is allowed
};

// A row of the reference's output with the bound of each number.
struct Wanted {
  Row out;
  std::vector<double> bound;
};

class Lockstep {
 public:
  Lockstep(const CacheCase& which, const Family& family, int n_sequences, int64_t max_tokens, uint32_t seed)
      : which_(which),
        family_(family),
        reference_(make_backend({.device = "reference", .n_threads = {}})),
        cache_(*reference_, which, family.dtype, family.order, n_sequences, max_tokens),
        n_past_(n_sequences),
        random_(seed) {
    for (const std::string& device : family.devices) {
      devices_.push_back(std::make_unique<Device>(device, which, family, n_sequences, max_tokens));
    }
  }

  // n_new[b] new tokens of every sequence.
  void step(const std::vector<int>& n_new, Numbers numbers, bool padding = false) {
    const StepRows rows = make_rows(n_new, numbers, padding);
    const format::KvBatchView view = cache_.view(n_past_);
    if (numbers != Numbers::kSpecial && attends_) compare_attention_if_there(rows, view);
    if (testing::Test::HasFatalFailure()) return;
    store(*reference_, cache_, rows);
    const std::vector<std::byte> wanted = cache_.bytes();
    for (const auto& device : devices_) {
      store(*device->backend, device->cache, rows);
      ASSERT_TRUE(device->cache.bytes() == wanted) << device->name << ": " << first_difference(*device, wanted);
    }
    for (size_t b = 0; b < n_new.size(); ++b) n_past_[b] += n_new[b];
    record_errors();
  }

 private:
  int head_dim() const { return which_.head_dim; }
  float softmax_scale() const { return 1.0F / std::sqrt(static_cast<float>(head_dim())); }

  std::string first_difference(const Device& device, const std::vector<std::byte>& wanted) const {
    const std::vector<std::byte> got = device.cache.bytes();
    const auto at = std::mismatch(got.begin(), got.end(), wanted.begin());
    const auto n = std::inner_product(got.begin(), got.end(), wanted.begin(), int64_t{0}, std::plus<>(),
                                      [](std::byte x, std::byte y) { return x == y ? 0 : 1; });
    return fmt::format("{} bytes differ, first byte {} of {}", n, at.first - got.begin(), got.size());
  }

  // ---- Random rows ----

  float rounded(float x) const { return from_bits(to_bits(x, family_.dtype), family_.dtype); }

  void fill_row(float* row, Numbers numbers, bool keys) {
    const bool constant = numbers == Numbers::kConstant ? !keys : random_() % 16 == 0;
    const float level = numbers == Numbers::kConstant ? static_cast<float>(random_() % 5) - 2.5F : 0.75F;
    for (int c = 0; c < head_dim(); ++c) {
      float x = normal_(random_);
      if (keys && c % 13 == 5) x *= 8.0F;
      if (numbers == Numbers::kHalves && !keys) x = c % 32 < 16 ? 5.0F + 0.125F * x : 2.0F * x - 3.0F;
      row[c] = numbers == Numbers::kSpecial && random_() % 8 == 0 ? special() : rounded(constant ? level : x);
    }
  }

  float special() {
    constexpr uint16_t kHalves[] = {0x7C00, 0xFC00, 0x7E00, 0x8000, 0x0000, 0x0001, 0x8001, 0x7BFF, 0xFBFF};
    constexpr uint16_t kBFloats[] = {0x7F80, 0xFF80, 0x7FC0, 0x8000, 0x0000, 0x0001, 0x8001, 0x7F7F, 0xFF7F};
    return from_bits((family_.dtype == DType::kF16 ? kHalves : kBFloats)[random_() % 9], family_.dtype);
  }

  StepRows make_rows(const std::vector<int>& n_new, Numbers numbers, bool padding) {
    StepRows rows;
    rows.seq_begin.push_back(0);
    for (const int n : n_new) rows.seq_begin.push_back(rows.seq_begin.back() + n);
    rows.n_rows = rows.seq_begin.back() + (padding ? kPaddingRows : 0);
    const int64_t row_size = int64_t{2} * which_.n_kv_heads * head_dim();
    rows.kv.resize(rows.n_rows * row_size);
    rows.q.resize(rows.n_rows * which_.n_heads() * head_dim());
    for (int64_t n = 0; n < rows.n_rows; ++n) {
      for (int h = 0; h < 2 * which_.n_kv_heads; ++h) {
        float* row = &rows.kv[n * row_size + h * head_dim()];
        const bool keys = h < which_.n_kv_heads;
        const bool repeat = numbers == Numbers::kConstant && keys && n % 40 != 0;
        if (repeat) {
          std::copy_n(row - row_size, head_dim(), row);
        } else {
          fill_row(row, numbers, keys);
        }
      }
    }
    for (float& x : rows.q) x = rounded(normal_(random_));
    if (numbers == Numbers::kPeaked) aim_queries(rows);
    return rows;
  }

  // Makes each query prefer one token that it sees, by far.
  void aim_queries(StepRows& rows) {
    const format::KvBatchView view = cache_.view(n_past_);
    for (size_t b = 0; b + 1 < rows.seq_begin.size(); ++b) {
      for (int head = 0; head < which_.n_kv_heads; ++head) {
        const std::vector<Row> keys = all_rows(rows, view, b, head, true);
        for (int n = rows.seq_begin[b]; n < rows.seq_begin[b + 1]; ++n) {
          for (int g = 0; g < which_.heads_per_kv; ++g) {
            const Seen seen = seen_by(n_past_[b], n - rows.seq_begin[b]);
            const Row& key = keys[seen.begin + random_() % static_cast<uint32_t>(seen.end - seen.begin)];
            const double norm = std::inner_product(key.begin(), key.end(), key.begin(), 1e-3);
            const auto factor = static_cast<float>(400.0 / softmax_scale() / norm);
            float* q = &rows.q[(int64_t{n} * which_.n_heads() + head * which_.heads_per_kv + g) * head_dim()];
            for (int c = 0; c < head_dim(); ++c) q[c] = rounded(key[c] * factor);
          }
        }
      }
    }
  }

  // ---- The reference ----

  // Of the rows of all_rows(), those that new token i sees.
  struct Seen {
    int64_t begin;
    int64_t end;
  };
  Seen seen_by(int64_t n_past, int64_t i) const {
    const format::WindowPolicy policy{.sliding_window = which_.sliding_window};
    const int64_t first = policy.first_seen(n_past);
    return {policy.first_seen(n_past + i) - first, n_past + i + 1 - first};
  }

  Row new_row(const StepRows& rows, int64_t n, int head, bool keys) const {
    const float* row = &rows.kv[(n * 2 * which_.n_kv_heads + (keys ? 0 : which_.n_kv_heads) + head) * head_dim()];
    return {row, row + head_dim()};
  }

  // Stored rows of a sequence and KV head that a new token sees, and the new ones.
  std::vector<Row> all_rows(const StepRows& rows, const format::KvBatchView& view, size_t b, int head,
                            bool keys) const {
    std::vector<Row> all = keys ? reference::stored_keys(view, static_cast<int64_t>(b), head)
                                : reference::stored_values(view, static_cast<int64_t>(b), head);
    for (int n = rows.seq_begin[b]; n < rows.seq_begin[b + 1]; ++n) all.push_back(new_row(rows, n, head, keys));
    return all;
  }

  // |code * scale| + |zero| of packed numbers, |x| of others.
  std::vector<Row> magnitudes(std::vector<Row> all, const format::KvBatchView& view, size_t b, int head,
                              bool keys) const {
    const format::PageLayout& layout = view.layout;
    const format::WindowPolicy& policy = keys ? view.key_policy : view.value_policy;
    const int64_t n_packed = policy.n_packed(n_past_[b]);
    for (size_t t = 0; t < all.size(); ++t) {
      const int64_t u = policy.first_seen(n_past_[b]) + static_cast<int64_t>(t) - policy.sinks;
      for (int c = 0; c < head_dim(); ++c) {
        float zero = 0.0F;
        if (u >= 0 && u < n_packed) {
          const auto token = static_cast<int>(u % format::kPageTokens);
          const std::byte* block = view.packed_block(static_cast<int64_t>(b), u / format::kPageTokens, head);
          zero = (keys ? format::key_line(layout, block, token, c) : format::value_line(layout, block, token, c)).zero;
        }
        all[t][c] = std::abs(all[t][c] - zero) + std::abs(zero);
      }
    }
    return all;
  }

  // What one sequence and KV head attend to.
  struct Stored {
    std::vector<Row> keys;
    std::vector<Row> values;
    std::vector<Row> key_magnitudes;
    std::vector<Row> value_magnitudes;
  };
  Stored stored(const StepRows& rows, const format::KvBatchView& view, size_t b, int head) const {
    Stored all{all_rows(rows, view, b, head, true), all_rows(rows, view, b, head, false), {}, {}};
    all.key_magnitudes = magnitudes(all.keys, view, b, head, true);
    all.value_magnitudes = magnitudes(all.values, view, b, head, false);
    return all;
  }

  Wanted attend(const float* q, const Stored& all, const Seen& seen, const Precision& precision) const {
    const double scale = softmax_scale();
    const double cap = which_.score_cap;
    std::vector<double> p(seen.end);
    std::vector<double> errors(seen.end);
    std::vector<double> products(head_dim());
    double top = -INFINITY;
    for (int64_t t = seen.begin; t < seen.end; ++t) {
      double score = 0;
      for (int c = 0; c < head_dim(); ++c) {
        score += double{q[c]} * double{all.keys[t][c]};
        products[c] = scale * std::abs(double{q[c]} * double{all.key_magnitudes[t][c]});
      }
      p[t] = cap > 0 ? cap * std::tanh(score * scale / cap) : score * scale;
      top = std::max(top, p[t]);
      errors[t] = score_error(precision, products, cap);
    }
    double total = 0;
    for (int64_t t = seen.begin; t < seen.end; ++t) total += p[t] = std::exp(p[t] - top);
    Wanted wanted{Row(head_dim()), std::vector<double>(head_dim())};
    for (int c = 0; c < head_dim(); ++c) {
      double out = 0;
      for (int64_t t = seen.begin; t < seen.end; ++t) out += p[t] / total * double{all.values[t][c]};
      OutputError error;
      for (int64_t t = seen.begin; t < seen.end; ++t) {
        error.add(p[t] / total, all.values[t][c], all.value_magnitudes[t][c], out, errors[t]);
      }
      wanted.out[c] = static_cast<float>(out);
      wanted.bound[c] = error.bound(precision, out, total);
    }
    return wanted;
  }

  // ---- The devices ----

  // Keys and values as the slices of one tensor.
  Tensor upload_kv(Backend& backend, const StepRows& rows) const {
    std::vector<Half> bits(rows.kv.size());  // or bfloat16
    for (size_t i = 0; i < bits.size(); ++i) bits[i].bits = to_bits(rows.kv[i], family_.dtype);
    return upload(backend, bits, {rows.n_rows, 2 * which_.n_kv_heads, head_dim()});
  }
  AnyView slice(const Tensor& kv, bool keys) const {
    AnyView view = kv.view();
    view.data = static_cast<Half*>(view.data) + (keys ? 0 : which_.n_kv_heads * head_dim());
    view.dtype = family_.dtype;
    view.shape[1] = which_.n_kv_heads;
    return view;
  }

  void store(Backend& backend, PagedBatch& cache, const StepRows& rows) const {
    const Tensor kv = upload_kv(backend, rows);
    const Tensor seq_begin = upload(backend, rows.seq_begin, {static_cast<int64_t>(rows.seq_begin.size())});
    backend.store_kv({.new_keys = slice(kv, true),
                      .new_values = slice(kv, false),
                      .seq_begin = seq_begin.view(),
                      .cache = cache.view(n_past_)});
  }

  // The device's output; NaN where it wrote nothing.
  std::vector<float> attend(Device& device, const StepRows& rows) const {
    Backend& backend = *device.backend;
    const DType activation = device.activation(family_);
    const std::initializer_list<int64_t> shape{rows.n_rows, which_.n_heads(), head_dim()};
    std::vector<Half> bits(rows.q.size());
    for (size_t i = 0; i < bits.size(); ++i) bits[i].bits = to_bits(rows.q[i], family_.dtype);
    const Tensor q = activation == DType::kF32 ? upload(backend, rows.q, shape) : upload(backend, bits, shape);
    AnyView q_view = q.view();
    q_view.dtype = activation;
    const Tensor out(backend, activation, shape);
    std::vector<std::byte> host(out.size_bytes(), std::byte{0xFF});
    backend.copy_to_device(out.view().data, host.data(), host.size());
    const Tensor kv = upload_kv(backend, rows);
    const Tensor seq_begin = upload(backend, rows.seq_begin, {static_cast<int64_t>(rows.seq_begin.size())});
    const format::KvBatchView view = device.cache.view(n_past_);
    backend.plan_attend(
        {.seq_begin = seq_begin.view(), .cache = view, .n_rows = rows.n_rows, .n_heads = which_.n_heads()});
    backend.attend({.q = q_view,
                    .new_keys = slice(kv, true),
                    .new_values = slice(kv, false),
                    .seq_begin = seq_begin.view(),
                    .cache = view,
                    .softmax_scale = softmax_scale(),
                    .score_cap = which_.score_cap,
                    .out = out.view()});
    backend.copy_to_host(host.data(), out.view().data, host.size());
    std::vector<float> numbers(rows.q.size());
    for (size_t i = 0; i < numbers.size(); ++i) {
      if (activation == DType::kF32) {
        std::memcpy(&numbers[i], &host[i * sizeof(float)], sizeof(float));
      } else {
        uint16_t number = 0;
        std::memcpy(&number, &host[i * sizeof(number)], sizeof(number));
        numbers[i] = from_bits(number, activation);
      }
    }
    return numbers;
  }

  // Of long stretches of new rows only some are computed by the reference.
  static bool is_compared(int row, int n_new) { return row < 3 || row + 2 >= n_new || row % 13 == 7; }

  // For reports: "error_of_tolerance cuda:0 f16": 0.21.
  void record_errors() const {
    for (const auto& device : devices_) {
      testing::Test::RecordProperty(
          fmt::format("error_of_tolerance {} {}", device->name, kivi::name(device->activation(family_))),
          fmt::format("{:.3f}", device->largest_error));
    }
  }

  // A device need not attend to every cache that it stores, but must say so.
  void compare_attention_if_there(const StepRows& rows, const format::KvBatchView& view) {
    try {
      compare_attention(rows, view);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUnsupported) throw;
      std::cout << "not there: " << error.what() << "\n";
      attends_ = false;
    }
  }

  void compare_attention(const StepRows& rows, const format::KvBatchView& view) {
    std::vector<std::vector<float>> outputs;
    for (const auto& device : devices_) outputs.push_back(attend(*device, rows));
    const Precision precision = precision_of(devices_[0]->activation(family_));
    const int64_t row_size = int64_t{which_.n_heads()} * head_dim();
    for (size_t d = 0; d < devices_.size(); ++d) {
      for (int64_t i = 0; i < rows.n_rows * row_size; ++i) {
        ASSERT_EQ(std::isnan(outputs[d][i]), i / row_size >= rows.seq_begin.back())
            << devices_[d]->name << " row " << i / row_size << " channel " << i % row_size;
      }
    }
    for (size_t b = 0; b + 1 < rows.seq_begin.size(); ++b) {
      const int begin = rows.seq_begin[b];
      const int n_new = rows.seq_begin[b + 1] - begin;
      for (int head = 0; n_new > 0 && head < which_.n_kv_heads; ++head) {
        const Stored all = stored(rows, view, b, head);
        for (int i = 0; i < n_new * which_.heads_per_kv; ++i) {
          const int row = i / which_.heads_per_kv;
          if (!is_compared(row, n_new)) continue;
          const int64_t at = ((begin + row) * int64_t{which_.n_kv_heads} + head) * which_.heads_per_kv * head_dim() +
                             i % which_.heads_per_kv * head_dim();
          const Wanted wanted = attend(&rows.q[at], all, seen_by(n_past_[b], row), precision);
          for (size_t d = 0; d < devices_.size(); ++d) {
            for (int c = 0; c < head_dim(); ++c) {
              ASSERT_NEAR(outputs[d][at + c], wanted.out[c], wanted.bound[c])
                  << devices_[d]->name << " sequence " << b << " of " << n_past_[b] << " tokens, new row " << row
                  << " of " << n_new << ", KV head " << head << ", query head " << i % which_.heads_per_kv
                  << ", channel " << c;
              const double error = std::abs(double{outputs[d][at + c]} - double{wanted.out[c]});
              devices_[d]->largest_error = std::max(devices_[d]->largest_error, error / wanted.bound[c]);
            }
          }
        }
      }
    }
  }

  CacheCase which_;
  Family family_;
  std::unique_ptr<Backend> reference_;
  PagedBatch cache_;
  std::vector<std::unique_ptr<Device>> devices_;
  std::vector<int32_t> n_past_;
  bool attends_ = true;
  std::mt19937 random_;
  std::normal_distribution<float> normal_{0.0F, 1.0F};
};

}  // namespace kivi::parity
