// GenerationService. Generate and Score are files of their own.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status_macros.h"
#include "palimpsest/v1/generation.grpc.pb.h"
#include "server/rpc/call.h"
#include "server/rpc/checks.h"
#include "server/rpc/generation_calls.h"
#include "server/rpc/services.h"
#include "server/rpc/unary.h"

namespace palimpsest {
namespace {

using S = v1::GenerationService;
using RawService = S::WithRawCallbackMethod_Generate<
    S::WithRawCallbackMethod_Score<S::WithRawCallbackMethod_Tokenize<S::WithRawCallbackMethod_Detokenize<S::Service>>>>;

class GenerationServiceImpl final : public RawService {
 public:
  explicit GenerationServiceImpl(ServerCore& core) : core_(core) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override {
    return StartGenerate(core_, context, request);
  }
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* answer) override {
    return StartScore(core_, context, request, answer);
  }
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* answer) override {
    return RunUnary(this, core_, context, methods::kTokenize, request, answer, &GenerationServiceImpl::DoTokenize);
  }
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* answer) override {
    return RunUnary(this, core_, context, methods::kDetokenize, request, answer, &GenerationServiceImpl::DoDetokenize);
  }

 private:
  absl::Status DoTokenize(Call& call, const v1::TokenizeRequest& request, v1::TokenizeResponse* response) {
    PALIMPSEST_ASSIGN_OR_RETURN(ModelRef model, FindModel(request.model(), call.log));
    PALIMPSEST_RETURN_IF_ERROR(CheckPromptBytes("text", request.text().size(), core_.limits));
    const Tokenizer& tokenizer = model.tokenizer();
    int64_t unknown = 0;
    // Of more tokens than a prompt may have, nobody could make use.
    const std::vector<int32_t> ids =
        tokenizer.Encode(request.text(), /*first=*/!request.continues(), &unknown, core_.limits.max_prompt_tokens);
    PALIMPSEST_RETURN_IF_ERROR(CheckPromptTokens("text", ids.size(), core_.limits));
    response->mutable_ids()->Add(ids.begin(), ids.end());
    int32_t previous = request.continues() ? Tokenizer::kSomeToken : Tokenizer::kNoToken;
    for (const int32_t id : ids) {
      response->add_tokens(std::string(tokenizer.Bytes(id, previous)));
      previous = id;
    }
    response->set_unknown_tokens(unknown);
    return absl::OkStatus();
  }

  absl::Status DoDetokenize(Call& call, const v1::DetokenizeRequest& request, v1::DetokenizeResponse* response) {
    PALIMPSEST_ASSIGN_OR_RETURN(ModelRef model, FindModel(request.model(), call.log));
    PALIMPSEST_RETURN_IF_ERROR(CheckPromptTokens("ids", request.ids_size(), core_.limits));
    Violations violations;
    CheckIds("ids", request.ids(), model.vocabulary(), violations);
    if (!violations.empty()) return violations.ToStatus();
    const std::vector<int32_t> ids(request.ids().begin(), request.ids().end());
    response->set_text(model.tokenizer().Decode(ids));
    return absl::OkStatus();
  }

  absl::StatusOr<ModelRef> FindModel(const std::string& name, CallLog& log) {
    Violations violations;
    std::string id;
    CheckOptionalName("model", "models", name, &id, violations);
    if (!violations.empty()) return violations.ToStatus();
    absl::StatusOr<ModelRef> model = id.empty() ? core_.models.FindOnly() : core_.models.Find(id);
    if (model.ok()) log.model = model->id();
    return model;
  }

  ServerCore& core_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeGenerationService(ServerCore& core) {
  return std::make_unique<GenerationServiceImpl>(core);
}

}  // namespace palimpsest
