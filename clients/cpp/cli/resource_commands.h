// The commands that differ only in what they are about: those that show sessions, snapshots or models, and those that
// do something to each that is named.
#pragma once

#include <cstdio>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "clients/cpp/cli/command.h"

namespace palimpsest::cli {

// How resources are shown to people.
template <class Resource>
using PrintPlain = void (*)(const Context& context, const std::vector<Resource>& resources);

// `as_list`: JSON has one resource to a line, not one over several. Of no resources nothing is printed.
template <class Resource>
void PrintResources(const Context& context, const std::vector<Resource>& resources, bool json, bool as_list,
                    PrintPlain<Resource> print) {
  if (json) {
    for (const Resource& resource : resources) std::puts(ToJson(resource, /*indented=*/!as_list).c_str());
  } else if (!resources.empty()) {
    print(context, resources);
  }
}

// Prints what one call gives: a resource, or a list of them.
template <class Resource>
class ShowCommand : public Command {
 public:
  using FetchOne = std::function<absl::StatusOr<Resource>(client::Client&, const Context&)>;
  using FetchList = std::function<absl::StatusOr<std::vector<Resource>>(client::Client&, const Context&)>;

  ShowCommand(Info info, FetchOne fetch, PrintPlain<Resource> print)
      : ShowCommand(
            std::move(info), /*as_list=*/false,
            [fetch = std::move(fetch)](client::Client& client,
                                       const Context& context) -> absl::StatusOr<std::vector<Resource>> {
              ASSIGN_OR_RETURN(Resource resource, fetch(client, context));
              return std::vector<Resource>{std::move(resource)};
            },
            print) {}
  ShowCommand(Info info, bool as_list, FetchList fetch, PrintPlain<Resource> print)
      : Command(std::move(info)), as_list_(as_list), fetch_(std::move(fetch)), print_(print) {}

  void AddFlags(FlagSet& flags) override {
    flags.Add("json", &json_, "", as_list_ ? "print JSON, one object to a line" : "print JSON");
  }
  absl::Status Run(Context& context) override {
    ASSIGN_OR_RETURN(const auto client, context.Connect());
    ASSIGN_OR_RETURN(const std::vector<Resource> resources, fetch_(*client, context));
    PrintResources(context, resources, json_, as_list_, print_);
    return absl::OkStatus();
  }

 private:
  const bool as_list_;
  const FetchList fetch_;
  const PrintPlain<Resource> print_;
  bool json_ = false;
};

// Prints the caller's resources, or those of all owners.
template <class Resource>
class ListCommand : public Command {
 public:
  using Fetch =
      std::function<absl::StatusOr<std::vector<Resource>>(client::Client&, const Context&, const std::string& owner)>;

  ListCommand(Info info, Fetch fetch, PrintPlain<Resource> print)
      : Command(std::move(info)), fetch_(std::move(fetch)), print_(print) {}

  void AddFlags(FlagSet& flags) override {
    flags.Add("all_owners", &all_owners_, "", "those of all owners; for admins");
    flags.Add("json", &json_, "", "print JSON, one object to a line");
  }
  absl::Status Run(Context& context) override {
    ASSIGN_OR_RETURN(const auto client, context.Connect());
    ASSIGN_OR_RETURN(const std::vector<Resource> resources,
                     fetch_(*client, context, all_owners_ ? client::kAllOwners : ""));
    PrintResources(context, resources, json_, /*as_list=*/true, print_);
    return absl::OkStatus();
  }

 private:
  const Fetch fetch_;
  const PrintPlain<Resource> print_;
  bool all_owners_ = false;
  bool json_ = false;
};

// Does one thing to each resource that is named, up to the first that it cannot be done to.
class ForEachCommand : public Command {
 public:
  using Act = std::function<absl::Status(client::Client&, const Context&, const std::string& name)>;

  ForEachCommand(Info info, std::string collection, Act act)
      : Command(std::move(info)), collection_(std::move(collection)), act_(std::move(act)) {}
  absl::Status Run(Context& context) override {
    ASSIGN_OR_RETURN(const auto client, context.Connect());
    for (const std::string& name : context.arguments) {
      RETURN_IF_ERROR(act_(*client, context, ResourceName(collection_, name)));
    }
    return absl::OkStatus();
  }

 private:
  const std::string collection_;
  const Act act_;
};

}  // namespace palimpsest::cli
