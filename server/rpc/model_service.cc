// ModelService. Loading and unloading take seconds and run on threads of their own; a caller that gives up before they
// end can watch the model's condition.
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/log.h"
#include "palimpsest/v1/model.grpc.pb.h"
#include "server/rpc/call.h"
#include "server/rpc/checks.h"
#include "server/rpc/resources.h"
#include "server/rpc/services.h"
#include "server/rpc/status.h"

namespace palimpsest {
namespace {

class ModelServiceImpl final : public v1::ModelService::CallbackService {
 public:
  explicit ModelServiceImpl(ServerCore& core) : core_(core) {}

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context, const v1::ListModelsRequest*,
                                       v1::ListModelsResponse* response) override {
    return RunUnary(core_, context, "palimpsest.v1.ModelService/ListModels", [&](CallLog&) {
      for (const ModelInfo& model : core_.models.List()) FillModel(model, response->add_models());
      return absl::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context, const v1::GetModelRequest* request,
                                     v1::Model* response) override {
    return RunUnary(core_, context, "palimpsest.v1.ModelService/GetModel", [&](CallLog& log) -> absl::Status {
      Violations violations;
      CheckName("name", "models", request->name(), &log.model, violations);
      if (!violations.empty()) return violations.ToStatus();
      absl::StatusOr<ModelInfo> model = core_.models.Get(log.model);
      if (!model.ok()) return model.status();
      FillModel(*model, response);
      return absl::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* LoadModel(grpc::CallbackServerContext* context, const v1::LoadModelRequest* request,
                                      v1::Model* response) override {
    // gRPC keeps request and response until the call is finished.
    return RunSlowUnary(core_, context, "palimpsest.v1.ModelService/LoadModel",
                        [this, request, response](CallLog& log) -> absl::Status {
                          Violations violations;
                          CheckNewId("model_id", request->model_id(), /*dots=*/true, violations);
                          if (request->path().empty()) {
                            violations.Add("path", "is empty; accepted: a folder below the server's --model_root");
                          }
                          if (!violations.empty()) return violations.ToStatus();
                          log.model = request->model_id();
                          absl::StatusOr<std::string> folder = core_.models.ResolvePath(request->path());
                          if (!folder.ok()) return folder.status();
                          const absl::Time begin = absl::Now();
                          absl::StatusOr<ModelInfo> model = core_.models.Load(request->model_id(), *folder);
                          if (!model.ok()) return model.status();
                          LogModelLoaded(*model, absl::Now() - begin);
                          FillModel(*model, response);
                          return absl::OkStatus();
                        });
  }

  grpc::ServerUnaryReactor* UnloadModel(grpc::CallbackServerContext* context, const v1::UnloadModelRequest* request,
                                        google::protobuf::Empty*) override {
    return RunSlowUnary(core_, context, "palimpsest.v1.ModelService/UnloadModel",
                        [this, request](CallLog& log) -> absl::Status {
                          Violations violations;
                          CheckName("name", "models", request->name(), &log.model, violations);
                          if (!violations.empty()) return violations.ToStatus();
                          absl::Status status = core_.models.Unload(log.model);
                          if (status.ok()) LogEvent("model unloaded", {{"model", log.model}});
                          return status;
                        });
  }

 private:
  ServerCore& core_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeModelService(ServerCore& core) { return std::make_unique<ModelServiceImpl>(core); }

}  // namespace palimpsest
