// ModelService. Loading and unloading take seconds and run on threads of their own; a caller that gives up before they
// end can watch the model's condition.
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/steady_clock.h"
#include "palimpsest/v1/model.grpc.pb.h"
#include "server/errors/errors.h"
#include "server/rpc/call.h"
#include "server/rpc/checks.h"
#include "server/rpc/resources.h"
#include "server/rpc/services.h"
#include "server/rpc/unary.h"

namespace palimpsest {
namespace {

using S = v1::ModelService;
using RawService = S::WithRawCallbackMethod_ListModels<S::WithRawCallbackMethod_GetModel<
    S::WithRawCallbackMethod_LoadModel<S::WithRawCallbackMethod_UnloadModel<S::Service>>>>;

class ModelServiceImpl final : public RawService {
 public:
  explicit ModelServiceImpl(ServerCore& core) : core_(core) {}

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* answer) override {
    return RunUnary(this, core_, context, methods::kListModels, request, answer, &ModelServiceImpl::List);
  }
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* answer) override {
    return RunUnary(this, core_, context, methods::kGetModel, request, answer, &ModelServiceImpl::Get);
  }
  grpc::ServerUnaryReactor* LoadModel(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                      grpc::ByteBuffer* answer) override {
    return RunUnary(this, core_, context, methods::kLoadModel, request, answer, &ModelServiceImpl::Load,
                    RunsOn::kOwnThread);
  }
  grpc::ServerUnaryReactor* UnloadModel(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* answer) override {
    return RunUnary(this, core_, context, methods::kUnloadModel, request, answer, &ModelServiceImpl::Unload,
                    RunsOn::kOwnThread);
  }

 private:
  absl::Status List(Call&, const v1::ListModelsRequest&, v1::ListModelsResponse* response) {
    for (const ModelInfo& model : core_.models.List()) FillModel(model, response->add_models());
    return absl::OkStatus();
  }

  absl::Status Get(Call& call, const v1::GetModelRequest& request, v1::Model* response) {
    Violations violations;
    CheckName("name", "models", request.name(), &call.log.model, violations);
    if (!violations.empty()) return violations.ToStatus();
    PALIMPSEST_ASSIGN_OR_RETURN(ModelInfo model, core_.models.Get(call.log.model));
    FillModel(model, response);
    return absl::OkStatus();
  }

  absl::Status Load(Call& call, const v1::LoadModelRequest& request, v1::Model* response) {
    Violations violations;
    CheckNewId("model_id", request.model_id(), /*dots=*/true, violations);
    if (request.path().empty()) {
      violations.Add("path", "is empty; accepted: a folder below the server's --model_root");
    }
    if (!violations.empty()) return violations.ToStatus();
    call.log.model = request.model_id();
    PALIMPSEST_ASSIGN_OR_RETURN(std::string folder, core_.models.ResolvePath(request.path()));
    const absl::Time begin = SteadyNow();
    PALIMPSEST_ASSIGN_OR_RETURN(ModelInfo model, core_.models.Load(request.model_id(), folder));
    LogModelLoaded(model, SteadyNow() - begin);
    FillModel(model, response);
    return absl::OkStatus();
  }

  absl::Status Unload(Call& call, const v1::UnloadModelRequest& request, google::protobuf::Empty*) {
    Violations violations;
    CheckName("name", "models", request.name(), &call.log.model, violations);
    if (!violations.empty()) return violations.ToStatus();
    absl::Status status = core_.models.Unload(call.log.model);
    if (status.ok()) LogEvent("model unloaded", {{"model", call.log.model}});
    return status;
  }

  ServerCore& core_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeModelService(ServerCore& core) { return std::make_unique<ModelServiceImpl>(core); }

}  // namespace palimpsest
