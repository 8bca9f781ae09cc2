// The services, behind their common base, so that only their own files see the generated code.
#pragma once

#include <memory>

namespace grpc {
class Service;
}

namespace palimpsest {

struct ServerCore;

// `core` must outlive them.
std::unique_ptr<grpc::Service> MakeGenerationService(ServerCore& core);
std::unique_ptr<grpc::Service> MakeSessionService(ServerCore& core);
std::unique_ptr<grpc::Service> MakeSnapshotService(ServerCore& core);
std::unique_ptr<grpc::Service> MakeModelService(ServerCore& core);

}  // namespace palimpsest
