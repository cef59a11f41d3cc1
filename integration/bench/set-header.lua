-- What our filter does to a request, in Lua, for one host: the header that chooses the cluster.
function envoy_on_request(handle)
  if handle:headers():get(":authority") == "@HOST@" then
    handle:headers():replace("x-egress-originate", "@CLUSTER@")
  end
end
