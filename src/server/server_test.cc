// A server from its first moment to its last, over loopback.
#include "server/server.h"

#include <gtest/gtest.h>

#include "engine/engine_fixture.h"
#include "server/letter_tokenizer.h"
#include "server/loopback_client.h"

namespace kivi {
namespace {

class ServerTest : public EngineTest {
 protected:
  std::string health() const { return LoopbackClient(server.port()).ask("/health", "}"); }

  LetterTokenizer tokenizer;
  Engine engine = make_engine(parse_kv_config("f16"), {.max_tokens = 64, .max_sequences = 4});
  Server server{{.http = {.port = 0}}};
};

TEST_F(ServerTest, IsUnavailableUntilTheModelIsThere) {
  const std::string loading = health();
  EXPECT_TRUE(loading.starts_with("HTTP/1.1 503 ")) << loading;
  EXPECT_NE(loading.find("Retry-After: "), std::string::npos) << loading;
  EXPECT_NE(loading.find("the model is being loaded"), std::string::npos) << loading;
  server.open(engine, {.name = "tiny", .tokenizer = &tokenizer, .max_model_len = 64});
  const std::string ready = health();
  EXPECT_TRUE(ready.starts_with("HTTP/1.1 200 ")) << ready;
  server.shut_down();
  server.wait();
  EXPECT_EQ(health(), "");
}

TEST_F(ServerTest, EndsBeforeTheModelIsThere) {
  server.shut_down();
  server.wait();
  EXPECT_EQ(health(), "");
}

}  // namespace
}  // namespace kivi
