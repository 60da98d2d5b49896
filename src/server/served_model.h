// The model as requests see it, and what they become for the engine.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/request.h"
#include "model/model.h"
#include "server/schema.h"

namespace kivi {

struct ServedModel {
  std::string name{};
  const Tokenizer* tokenizer = nullptr;  // outlives the server
  ChatFormat chat_format = ChatFormat::kNone;
  std::string default_system_prompt{};
  std::string chat_template{};
  std::optional<TokenId> pad{};
  int64_t max_model_len = 0;  // tokens of prompt and output
  int64_t created = 0;        // seconds since 1970
};

// `model` must outlive the result.
ServedModel describe(const Model& model, std::string name, int64_t max_model_len);

// One engine request for each prompt; those of further choices differ in their seed. Throws ApiError for another model
// (404), for tokens that are not there and for more tokens than the context has.
std::vector<Request> to_requests(const GenerationCall& call, const ServedModel& model, uint64_t seed);

std::vector<TokenId> tokenize(const TokenizeCall& call, const ServedModel& model);
std::string detokenize(const DetokenizeCall& call, const ServedModel& model);

}  // namespace kivi
