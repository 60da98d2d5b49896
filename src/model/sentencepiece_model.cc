#include "model/sentencepiece_model.h"

#include <cstring>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "core/quoted.h"
#include "text/presets.h"

namespace kivi {
namespace {

using TokenType = TokenizerSpec::TokenType;

// Fields of SentencePiece's messages.
enum ModelField : uint64_t { kPieces = 1, kTrainerSpec = 2, kNormalizerSpec = 3 };
enum PieceField : uint64_t { kPieceText = 1, kPieceScore = 2, kPieceType = 3 };
enum TrainerField : uint64_t {
  kModelType = 3,
  kSpaceIsSuffix = 24,
  kUnknownId = 40,
  kBosId = 41,
  kEosId = 42,
  kPadId = 43
};
enum NormalizerField : uint64_t {
  kNormalizerName = 1,
  kCharacterMap = 2,
  kAddsSpace = 3,
  kRemovesSpaces = 4,
  kEscapesSpaces = 5
};
enum ModelType : uint64_t { kUnigramModel = 1, kBpeModel = 2 };

// Reads the fields of a protobuf message one after another, never beyond its end.
class Message {
 public:
  Message(std::string_view bytes, const std::string& source) : bytes_(bytes), source_(&source) {}

  // Goes to the next field; false at the end.
  bool next() {
    if (bytes_.empty()) return false;
    const uint64_t key = read_varint();
    field_ = key >> 3;
    wire_type_ = key & 7;
    switch (wire_type_) {
      case 0:
        number_ = read_varint();
        break;
      case 1:
        content_ = take(8);
        break;
      case 2:
        content_ = take(read_varint());
        break;
      case 5:
        content_ = take(4);
        break;
      default:
        refuse("has a field of unknown type");
    }
    return true;
  }

  uint64_t field() const { return field_; }
  uint64_t number() const { return require(0), number_; }
  bool flag() const { return number() != 0; }
  std::string_view text() const { return require(2), content_; }
  Message message() const { return {text(), *source_}; }
  float score() const {
    require(5);
    float value;
    std::memcpy(&value, content_.data(), sizeof(value));
    return value;
  }

  [[noreturn]] void refuse(std::string_view what) const {
    fail(ErrorCode::kCorrupt, "{}: {}; it is no SentencePiece model, or broken: fetch it again", *source_, what);
  }

 private:
  void require(uint64_t wire_type) const {
    if (wire_type_ != wire_type) refuse(fmt::format("field {} has another type than it must", field_));
  }

  std::string_view take(uint64_t size) {
    if (size > bytes_.size()) refuse(fmt::format("a field of {} bytes, but only {} follow", size, bytes_.size()));
    const std::string_view taken = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return taken;
  }

  uint64_t read_varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<uint8_t>(take(1)[0]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    refuse("a number is longer than 10 bytes");
  }

  std::string_view bytes_;
  const std::string* source_;
  uint64_t field_ = 0, wire_type_ = 0, number_ = 0;
  std::string_view content_;
};

struct Settings {  // as SentencePiece's defaults
  uint64_t model_type = kUnigramModel;
  bool space_is_suffix = false;
  int32_t unknown = 0, bos = 1, eos = 2, pad = -1;
  std::string normaliser = {};
  bool has_character_map = false, adds_space = true, removes_spaces = true, escapes_spaces = true;
};

void read_piece(Message piece, TokenizerSpec& spec) {
  std::string text;
  float score = 0;
  uint64_t type = static_cast<uint64_t>(TokenType::kNormal);
  while (piece.next()) {
    if (piece.field() == kPieceText) text = piece.text();
    if (piece.field() == kPieceScore) score = piece.score();
    if (piece.field() == kPieceType) type = piece.number();
  }
  if (type < static_cast<uint64_t>(TokenType::kNormal) || type > static_cast<uint64_t>(TokenType::kByte)) {
    piece.refuse(fmt::format("piece {} has type {}, must be 1 to 6", spec.tokens.size(), type));
  }
  spec.tokens.push_back(std::move(text));
  spec.scores.push_back(score);
  spec.types.push_back(static_cast<TokenType>(type));
}

void read_trainer(Message trainer, Settings& settings) {
  while (trainer.next()) {
    // Negative ids are there as 64-bit numbers.
    const auto id = [&] { return static_cast<int32_t>(static_cast<int64_t>(trainer.number())); };
    switch (trainer.field()) {
      case kModelType:
        settings.model_type = trainer.number();
        break;
      case kSpaceIsSuffix:
        settings.space_is_suffix = trainer.flag();
        break;
      case kUnknownId:
        settings.unknown = id();
        break;
      case kBosId:
        settings.bos = id();
        break;
      case kEosId:
        settings.eos = id();
        break;
      case kPadId:
        settings.pad = id();
        break;
    }
  }
}

void read_normalizer(Message normalizer, Settings& settings) {
  while (normalizer.next()) {
    switch (normalizer.field()) {
      case kNormalizerName:
        settings.normaliser = normalizer.text();
        break;
      case kCharacterMap:
        settings.has_character_map = !normalizer.text().empty();
        break;
      case kAddsSpace:
        settings.adds_space = normalizer.flag();
        break;
      case kRemovesSpaces:
        settings.removes_spaces = normalizer.flag();
        break;
      case kEscapesSpaces:
        settings.escapes_spaces = normalizer.flag();
        break;
    }
  }
}

void check_settings(const Settings& settings, const std::string& source) {
  const auto refuse = [&](std::string_view what) { fail(ErrorCode::kUnsupported, "{}: {}", source, what); };
  if (settings.model_type != kBpeModel && settings.model_type != kUnigramModel) {
    refuse(fmt::format("SentencePiece model type {}: must be 1 (unigram) or 2 (BPE)", settings.model_type));
  }
  if (settings.has_character_map) {
    refuse(fmt::format("normaliser {} with a map of characters: not supported, must be identity",
                       kivi::quoted(settings.normaliser)));
  }
  if (settings.space_is_suffix) refuse("spaces as suffixes of words: not supported");
  if (!settings.escapes_spaces) refuse("spaces that are not U+2581: not supported");
}

}  // namespace

TokenizerSpec parse_sentencepiece_model(std::span<const std::byte> bytes, const std::string& source) {
  TokenizerSpec spec;
  Settings settings;
  Message model({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, source);
  while (model.next()) {
    if (model.field() == kPieces) read_piece(model.message(), spec);
    if (model.field() == kTrainerSpec) read_trainer(model.message(), settings);
    if (model.field() == kNormalizerSpec) read_normalizer(model.message(), settings);
  }
  if (spec.tokens.empty()) model.refuse("has no pieces");
  check_settings(settings, source);
  if (settings.removes_spaces) spec.normaliser.push_back({TextChange::Kind::kCollapseSpaces});
  set_sentencepiece(spec, settings.adds_space);
  if (settings.model_type == kUnigramModel) spec.algorithm = TokenizerSpec::Algorithm::kUnigram;
  const auto token = [&](int32_t id) {
    const bool is_there = id >= 0 && std::cmp_less(id, spec.tokens.size());
    return is_there ? std::optional(id) : std::nullopt;
  };
  if (!spec.unknown) spec.unknown = token(settings.unknown);
  spec.bos = token(settings.bos);
  spec.eos = token(settings.eos);
  spec.pad = token(settings.pad);
  spec.add_bos = spec.bos.has_value();
  return spec;
}

}  // namespace kivi
