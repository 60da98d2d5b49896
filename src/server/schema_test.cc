#include "server/schema.h"

#include <gtest/gtest.h>

#include "server/api_error.h"

namespace kivi {
namespace {

// The error of a body that is refused.
template <typename Parse>
ApiError refusal(Parse parse, const std::string& body) {
  try {
    parse(body);
  } catch (const ApiError& error) {
    EXPECT_EQ(error.status, 400) << body;
    return error;
  }
  ADD_FAILURE() << "not refused: " << body;
  return {};
}

TEST(Schema, CompletionDefaultsAreOpenAIs) {
  const GenerationCall call = parse_completion(R"({"prompt": "hi"})");
  EXPECT_EQ(std::get<std::string>(call.prompts.at(0)), "hi");
  EXPECT_FALSE(call.max_tokens);
  EXPECT_EQ(call.n, 1);
  EXPECT_EQ(call.sampling.temperature, 1.0);
  EXPECT_EQ(call.sampling.top_p, 1.0);
  EXPECT_EQ(call.sampling.top_k, 0);
  EXPECT_FALSE(call.stream || call.echo || call.n_logprobs || call.seed);
  EXPECT_TRUE(call.skips_special);
}

TEST(Schema, PromptsComeInFourShapes) {
  EXPECT_EQ(parse_completion(R"({"prompt": ["a", "b"]})").prompts.size(), 2U);
  const auto ids = parse_completion(R"({"prompt": [1, 2, 3]})").prompts;
  ASSERT_EQ(ids.size(), 1U);
  EXPECT_EQ(std::get<1>(ids[0]), (std::vector<TokenId>{1, 2, 3}));
  EXPECT_EQ(parse_completion(R"({"prompt": [[1], [2, 3]]})").prompts.size(), 2U);
}

TEST(Schema, ReadsEveryField) {
  const GenerationCall call = parse_completion(R"({
    "model": "m", "prompt": "p", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": -1, "min_p": 0.1, "n": 2,
    "stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true}, "stop": ["x", "yy"],
    "seed": -3, "logprobs": 0, "echo": true, "presence_penalty": -1, "frequency_penalty": 2, "logit_bias": {"5": -100},
    "repetition_penalty": 1.1, "min_tokens": 3, "ignore_eos": true, "stop_token_ids": [9],
    "skip_special_tokens": false, "include_stop_str_in_output": true, "somebody": {"elses": "field"}, "user": null})");
  EXPECT_EQ(call.max_tokens, 7);
  EXPECT_EQ(call.sampling.top_k, 0);
  EXPECT_EQ(call.stops, (std::vector<std::string>{"x", "yy"}));
  EXPECT_EQ(call.seed, -3);
  EXPECT_EQ(call.n_logprobs, 0);
  EXPECT_EQ(call.sampling.logit_bias.at(0).first, 5);
  EXPECT_TRUE(call.include_usage && call.continuous_usage && call.echo && call.ignores_eos && call.includes_stop);
  EXPECT_FALSE(call.skips_special);
}

TEST(Schema, ChatsHaveTextOrPartsAndOwnLimits) {
  const GenerationCall call = parse_chat(R"({"messages": [{"role": "developer", "content": "s"},
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": null}], "max_tokens": 5, "max_completion_tokens": 6, "logprobs": true,
    "top_logprobs": 4, "response_format": {"type": "text"}, "tools": [{}], "tool_choice": "none"})");
  ASSERT_EQ(call.messages.size(), 3U);
  EXPECT_EQ(call.messages[0].role, "system");
  EXPECT_EQ(call.messages[1].content, "ab");
  EXPECT_EQ(call.max_tokens, 6);
  EXPECT_EQ(call.n_logprobs, 4);
}

TEST(Schema, RefusalsNameTheFieldTheValueAndTheRange) {
  struct Case {
    const char* field;
    const char* value;
    const char* wanted;
  };
  for (const Case& c : std::initializer_list<Case>{
           {"temperature", "3", "from 0 to 2"},
           {"temperature", "\"hot\"", "from 0 to 2"},
           {"temperature", "1e999", ""},
           {"top_p", "0", "above 0 and at most 1"},
           {"top_k", "-2", "at least -1"},
           {"top_k", "1.5", "an integer"},
           {"min_p", "1.1", "from 0 to 1"},
           {"n", "0", "from 1 to 128"},
           {"max_tokens", "0", "at least 1"},
           {"max_tokens", "18446744073709551615", "at least 1"},
           {"max_tokens", "true", "at least 1"},
           {"logprobs", "21", "from 0 to 20"},
           {"logprobs", "true", "from 0 to 20"},
           {"stream", "1", "true or false"},
           {"stop", "[1]", "strings"},
           {"stop", "\"\"", "1 to 1024 bytes"},
           {"seed", "0.5", "an integer"},
           {"logit_bias", "{\"x\": 1}", "token id"},
           {"logit_bias", "{\"1\": 101}", "from -100 to 100"},
           {"logit_bias", "[]", "an object"},
           {"stop_token_ids", "[-1]", "integers from 0"},
           {"presence_penalty", "2.5", "from -2 to 2"},
           {"repetition_penalty", "0", "above 0"},
           {"stream_options", "{}", "only with"},
           {"response_format", "{\"type\": \"json_object\"}", "is supported"},
           {"tools", "[{}]", "not supported"},
           {"suffix", "\"x\"", "not supported"},
           {"model", "5", "a string"},
       }) {
    const std::string body = fmt::format(R"({{"prompt": "p", "{}": {}}})", c.field, c.value);
    const ApiError error = refusal(parse_completion, body);
    if (std::string(c.value) != "1e999") {
      EXPECT_EQ(error.param, c.field) << body;
    }
    EXPECT_NE(error.message.find(c.wanted), std::string::npos) << error.message;
  }
}

TEST(Schema, RefusesWhatIsNoRequest) {
  for (const char* body : {"", "{", "[]", "\"x\"", "null", "{\"prompt\": \"\xFF\"}"}) refusal(parse_completion, body);
  for (const char* prompt : {"null", "5", "[]", "{}", "[null]", "[1, \"a\"]", "[\"a\", 1]", "[[1.5]]", "[[-1]]"}) {
    EXPECT_EQ(refusal(parse_completion, fmt::format(R"({{"prompt": {}}})", prompt)).param, "prompt") << prompt;
  }
  for (const char* messages : {"[]", "5", "[5]", R"([{"role": "tool", "content": "x"}])", R"([{"content": "x"}])",
                               R"([{"role": "user", "content": [{"type": "image_url"}]}])"}) {
    EXPECT_TRUE(refusal(parse_chat, fmt::format(R"({{"messages": {}}})", messages)).param.starts_with("messages"));
  }
  EXPECT_EQ(refusal(parse_chat, R"({"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2})").param,
            "top_logprobs");
  EXPECT_EQ(refusal(parse_completion, R"({"prompt": "x", "max_tokens": 2, "min_tokens": 3})").param, "min_tokens");
  refusal(parse_tokenize, "{}");
  refusal(parse_detokenize, R"({"tokens": ["a"]})");
}

TEST(Schema, DeepNestingIsRefusedAndNotFollowed) {
  refusal(parse_completion, std::string(200000, '['));
  refusal(parse_completion, R"({"prompt": )" + std::string(100000, '[') + std::string(100000, ']') + "}");
}

TEST(Schema, ZeroTokensAreForEcho) {
  EXPECT_EQ(parse_completion(R"({"prompt": "x", "echo": true, "max_tokens": 0})").max_tokens, 0);
}

}  // namespace
}  // namespace kivi
