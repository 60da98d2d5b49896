// The code against the test vectors in docs/packed-format.md, read out of that file: document and code cannot part.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <charconv>
#include <fstream>
#include <map>
#include <memory>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "crc32.h"
#include "format/group_params.h"
#include "format/kv_view.h"
#include "format/packed_word.h"
#include "format/page_layout.h"
#include "format/window_policy.h"
#include "host_cache.h"
#include "quantise_group.h"

namespace kivi::golden {
namespace {

using format::PageLayout;
using format::WindowPolicy;

// One line "kind name=value ...". What cannot be read, is missing or is left over throws std::runtime_error.
class Vector {
 public:
  explicit Vector(const std::string& line) {
    std::istringstream words(line);
    words >> kind_;
    for (std::string word; words >> word;) {
      const size_t equals = word.find('=');
      if (equals == std::string::npos) throw std::runtime_error("'" + word + "' is not name=value");
      if (!fields_.emplace(word.substr(0, equals), word.substr(equals + 1)).second) {
        throw std::runtime_error("'" + word + "' comes twice");
      }
    }
  }

  const std::string& kind() const { return kind_; }

  std::string text(const std::string& name) {
    const auto field = fields_.extract(name);
    if (field.empty()) throw std::runtime_error("no " + name + " (left)");
    return field.mapped();
  }
  template <typename T>
  std::vector<T> list(const std::string& name) {
    std::vector<T> numbers;
    std::istringstream items(text(name) + ',');
    for (std::string item; std::getline(items, item, ',');) numbers.push_back(parse<T>(item));
    return numbers;
  }
  template <typename T = int>
  T number(const std::string& name) {
    return parse<T>(text(name));
  }
  bool has(const std::string& name) const { return fields_.contains(name); }
  PageLayout layout() {
    const auto key = pair("key");
    const auto value = pair("value");
    const bool bytes = has("params");
    if (bytes && text("params") != "byte") throw std::runtime_error("params is byte or not there");
    return {.n_kv_heads = number("kv_heads"),
            .head_dim = number("head_dim"),
            .key_bits = key[0],
            .value_bits = value[0],
            .key_group = key[1],
            .value_group = value[1],
            .params = bytes ? format::ParamFormat::kByte : format::ParamFormat::kHalf};
  }
  void expect_all_read() const {
    if (!fields_.empty()) throw std::runtime_error("unknown name " + fields_.begin()->first);
  }

 private:
  std::vector<int> pair(const std::string& name) {
    std::vector<int> numbers = list<int>(name);
    if (numbers.size() != 2) throw std::runtime_error(name + " wants two numbers");
    return numbers;
  }

  template <typename T>
  static T parse(std::string_view item) {
    const std::string_view digits = item.starts_with("0x") ? item.substr(2) : item;
    T number{};
    std::from_chars_result result{};
    if constexpr (std::is_floating_point_v<T>) {
      result = std::from_chars(item.data(), item.data() + item.size(), number);
    } else {
      result = std::from_chars(digits.data(), digits.data() + digits.size(), number, digits == item ? 10 : 16);
    }
    if (result.ec != std::errc() || result.ptr != item.data() + item.size()) {
      throw std::runtime_error("'" + std::string(item) + "' is no number");
    }
    return number;
  }

  std::string kind_;
  std::map<std::string, std::string> fields_;
};

class FormatDocument : public testing::Test {
 protected:
  void word(Vector& vector) {
    const auto bits = vector.number("bits");
    const auto codes = vector.list<uint32_t>("codes");
    ASSERT_EQ(codes.size(), static_cast<size_t>(format::codes_per_word(bits)));
    const auto wanted = vector.number<uint32_t>("word");
    EXPECT_EQ(pack_words(codes, bits), std::vector{wanted});
    for (size_t j = 0; j < codes.size(); ++j)
      EXPECT_EQ(format::code_at(wanted, static_cast<int>(j), bits), codes[j]) << j;
  }

  void group(Vector& vector) {
    const QuantisedGroup got = quantise_group(vector.list<float>("x"), vector.number("bits"));
    EXPECT_EQ(got.params.scale.bits, vector.number<uint16_t>("scale"));
    EXPECT_EQ(got.params.zero.bits, vector.number<uint16_t>("zero"));
    EXPECT_EQ(got.codes, vector.list<uint32_t>("codes"));
    EXPECT_EQ(got.words, vector.list<uint32_t>("words"));
    EXPECT_EQ(got.values, vector.list<float>("values"));
  }

  void layout(Vector& vector) {
    const PageLayout layout = vector.layout();
    EXPECT_EQ(layout.key_codes(), 0);
    EXPECT_EQ(layout.key_scales(), vector.number("key_scales"));
    EXPECT_EQ(layout.key_zeros(), vector.number("key_zeros"));
    EXPECT_EQ(layout.value_codes(), vector.number("value_codes"));
    EXPECT_EQ(layout.value_scales(), vector.number("value_scales"));
    if (layout.params == format::ParamFormat::kHalf) {
      EXPECT_EQ(layout.value_zeros(), vector.number("value_zeros"));
    } else {
      EXPECT_EQ(layout.key_zero_units(), vector.number("key_units"));
    }
    EXPECT_EQ(layout.payload_bytes(), layout.block_bytes()) << "the document says that there is no padding";
    EXPECT_EQ(layout.block_bytes(), vector.number("block_bytes"));
    EXPECT_EQ(layout.page_bytes(), vector.number("page_bytes"));
  }

  void place(Vector& vector) {
    const PageLayout layout = vector.layout();
    const int token = vector.number("token");
    const int channel = vector.number("channel");
    const int param = layout.param_bytes();
    const auto code = [&](const std::string& side, int64_t codes, int bits, const format::CodePlaces& at) {
      EXPECT_EQ(codes + 4 * at.low.word, vector.number(side + "_word"));
      EXPECT_EQ(format::low_bits(bits) * at.low.place, vector.number(side + "_bit"));
      if (!format::has_high_plane(bits)) return;
      EXPECT_EQ(codes + 4 * at.high.word, vector.number(side + "_high_word"));
      EXPECT_EQ(at.high.place, vector.number(side + "_high_bit"));
    };
    code("key", layout.key_codes(), layout.key_bits, layout.key_code(token, channel));
    EXPECT_EQ(layout.key_scales() + param * layout.key_param(token, channel), vector.number("key_scale"));
    EXPECT_EQ(layout.key_zeros() + param * layout.key_param(token, channel), vector.number("key_zero"));
    code("value", layout.value_codes(), layout.value_bits, layout.value_code(token, channel));
    EXPECT_EQ(layout.value_scales() + param * layout.value_param(token, channel), vector.number("value_scale"));
    if (layout.params == format::ParamFormat::kByte) return;
    EXPECT_EQ(layout.value_zeros() + param * layout.value_param(token, channel), vector.number("value_zero"));
  }

  void scale_byte(Vector& vector) {
    EXPECT_EQ(format::scale_to_byte(vector.number<float>("scale")), vector.number<uint32_t>("byte"));
  }

  void key_row(Vector& vector) {
    const int bits = vector.number("bits");
    const auto low = vector.list<float>("low");
    const auto high = vector.list<float>("high");
    const auto n = static_cast<int>(low.size());
    const PageLayout layout{.n_kv_heads = 1,
                            .head_dim = n,
                            .key_bits = bits,
                            .key_group = format::kPageTokens,
                            .value_group = 16,
                            .params = format::ParamFormat::kByte};
    std::vector<format::GroupRange> ranges;
    for (int c = 0; c < n; ++c) ranges.push_back({low[c], high[c]});
    std::vector<std::byte> block(static_cast<size_t>(layout.block_bytes()));
    format::store_key_params(layout, block.data(), 0, ranges);
    const auto bytes = [&](int64_t at) {
      std::vector<int> out;
      for (int c = 0; c < n; ++c) out.push_back(std::to_integer<int>(block[static_cast<size_t>(at + c)]));
      return out;
    };
    const auto* unit = reinterpret_cast<const Half*>(block.data() + layout.key_zero_units());
    EXPECT_EQ(unit->bits, vector.number<uint16_t>("unit"));
    EXPECT_EQ(bytes(layout.key_scales()), vector.list<int>("scales"));
    EXPECT_EQ(bytes(layout.key_zeros()), vector.list<int>("zeros"));
  }

  void value_byte(Vector& vector) {
    const int bits = vector.number("bits");
    const auto x = vector.list<float>("x");
    const uint8_t scale = format::value_scale(format::sum_of_squares(x), static_cast<int>(x.size()), bits);
    EXPECT_EQ(scale, vector.number<uint32_t>("scale"));
    const format::GroupLine line = format::value_line(scale, bits);
    std::vector<uint32_t> codes;
    for (const float number : x) codes.push_back(format::quantise(number, line.scale, line.zero, bits));
    EXPECT_EQ(codes, vector.list<uint32_t>("codes"));
  }

  void packed(Vector& vector) {
    const WindowPolicy policy{
        .sinks = vector.number("sinks"), .keep = vector.number("keep"), .flush = vector.number("flush")};
    std::vector<int64_t> got;
    for (const int n : vector.list<int>("tokens")) got.push_back(policy.n_packed(n));
    EXPECT_EQ(got, vector.list<int64_t>("packed"));
  }

  void stored(Vector& vector) {
    format::WindowPolicy policy{.sinks = vector.number("sinks")};
    if (vector.number("packs") == 1) policy.keep = 0;
    policy.sliding_window = vector.number("window");
    std::vector<int64_t> got;
    for (const int n : vector.list<int>("tokens")) got.push_back(policy.first_stored(n));
    EXPECT_EQ(got, vector.list<int64_t>("first"));
  }

  void slot(Vector& vector) {
    format::KvBatchView view;
    view.layout.n_kv_heads = vector.number("kv_heads");
    view.layout.head_dim = vector.number("head_dim");
    view.key_policy = {.sinks = vector.number("sinks")};
    const int slots = vector.number("slots");
    std::vector<int32_t> table(slots);
    std::iota(table.begin(), table.end(), 0);
    view.key_window_table = TensorView<const int32_t, 2>(table.data(), {1, slots});
    view.window_stride = view.window_page_bytes();
    std::vector<std::byte> pages(static_cast<size_t>(slots * view.window_stride));
    view.window_pages = pages.data();

    const int token = vector.number("token");
    const int wanted = vector.number("slot");
    EXPECT_EQ(view.key_policy.slot(token, slots), wanted);
    EXPECT_EQ(view.key_policy.place(token), vector.number("place"));
    EXPECT_EQ(view.key_row(0, token, vector.number("head")) - pages.data(),
              wanted * view.window_stride + vector.number("byte"));
  }

  void cost(Vector& vector) {
    const PageLayout layout = vector.layout();
    EXPECT_EQ(layout.bits_per_element(), vector.number<double>("bits_per_element"));
    EXPECT_EQ(layout.block_bytes(), vector.has("bytes_per_block")
                                        ? vector.number("bytes_per_block")
                                        : format::kPageTokens * vector.number("bytes_per_token"));
  }

  // Packs the numbers of section 5; lines of kind "bytes" are about this block.
  void block(Vector& vector) {
    const PageLayout layout = vector.layout();
    std::vector<reference::Row> keys(format::kPageTokens);
    std::vector<reference::Row> values(format::kPageTokens);
    for (int t = 0; t < format::kPageTokens; ++t) {
      for (int c = 0; c < layout.head_dim; ++c) {
        keys[t].push_back(static_cast<float>((t * (c + 5) + 3 * c) % 32 - 16) / 8.0F);
        values[t].push_back(static_cast<float>((t * (c + 11) + 7 * c) % 64 - 32) / 16.0F);
      }
    }
    const std::unique_ptr<Backend> backend = make_backend({.device = "reference", .n_threads = {}});
    HostCache cache(*backend, layout, {.keep = 0, .flush = layout.key_group}, {.keep = 0, .flush = 1}, DType::kF16,
                    format::kPageTokens);
    cache.store(keys, values);
    block_ = cache.packed_bytes();
    EXPECT_EQ(crc32(block_), vector.number<uint32_t>("crc32"));
  }

  void bytes(Vector& vector) {
    const auto at = vector.number<size_t>("at");
    const std::string wanted = vector.text("hex");
    ASSERT_LE(at + wanted.size() / 2, block_.size());
    std::string got;
    for (size_t i = 0; i < wanted.size() / 2; ++i) got += fmt::format("{:02x}", std::to_integer<int>(block_[at + i]));
    EXPECT_EQ(got, wanted);
  }

  struct Kind {
    std::string_view name;
    void (FormatDocument::*check)(Vector&);
    int n_seen = 0;
  };
  std::array<Kind, 13> kinds_{{{"word", &FormatDocument::word},
                               {"group", &FormatDocument::group},
                               {"layout", &FormatDocument::layout},
                               {"place", &FormatDocument::place},
                               {"scale_byte", &FormatDocument::scale_byte},
                               {"key_row", &FormatDocument::key_row},
                               {"value_byte", &FormatDocument::value_byte},
                               {"block", &FormatDocument::block},
                               {"bytes", &FormatDocument::bytes},
                               {"packed", &FormatDocument::packed},
                               {"stored", &FormatDocument::stored},
                               {"slot", &FormatDocument::slot},
                               {"cost", &FormatDocument::cost}}};

  void check_line(const std::string& line) {
    Vector vector(line);
    for (Kind& kind : kinds_) {
      if (kind.name != vector.kind()) continue;
      ++kind.n_seen;
      (this->*kind.check)(vector);
      vector.expect_all_read();
      return;
    }
    throw std::runtime_error("unknown kind '" + vector.kind() + "'");
  }

 private:
  std::vector<std::byte> block_;
};

TEST_F(FormatDocument, TheCodeAgreesWithEveryVector) {
  const std::string path = std::string(KIVI_SOURCE_DIR) + "/docs/packed-format.md";
  std::ifstream file(path);
  ASSERT_TRUE(file.is_open()) << path;
  std::string fence;  // the mark of the block that we are in
  int number = 0;
  for (std::string line; std::getline(file, line);) {
    SCOPED_TRACE("docs/packed-format.md:" + std::to_string(++number));
    if (line.starts_with("```")) {
      fence = fence.empty() ? line : "";
      EXPECT_TRUE(fence.empty() || fence == "```vectors" || fence == "```text") << fence;
    } else if (fence == "```vectors") {
      try {
        check_line(line);
      } catch (const std::runtime_error& error) {
        ADD_FAILURE() << error.what();
      }
    }
  }
  EXPECT_EQ(fence, "") << "a block is not closed";
  for (const Kind& kind : kinds_) EXPECT_GT(kind.n_seen, 0) << "no vectors of kind " << kind.name;
}

}  // namespace
}  // namespace kivi::golden
