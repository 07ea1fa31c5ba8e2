/* What the pretended GPU answers with "done" and nothing else; kept apart since CUDA's headers declare other arguments. */
#define ACCEPT(name) int name(void) { return 0; }

ACCEPT(cudaSetDevice) ACCEPT(cudaGetLastError) ACCEPT(cudaPeekAtLastError) ACCEPT(cudaDeviceEnablePeerAccess)
ACCEPT(cudaFuncSetAttribute) ACCEPT(cudaKernelSetAttributeForDevice) ACCEPT(cudaMemcpyToSymbol)
ACCEPT(cudaProfilerStart) ACCEPT(cudaProfilerStop)

ACCEPT(cudaStreamDestroy) ACCEPT(cudaStreamQuery) ACCEPT(cudaStreamWaitEvent) ACCEPT(cudaStreamAddCallback)
ACCEPT(cudaStreamGetPriority) ACCEPT(cudaLaunchHostFunc) ACCEPT(cudaThreadExchangeStreamCaptureMode)
ACCEPT(cudaEventRecord) ACCEPT(cudaEventRecordWithFlags) ACCEPT(cudaEventQuery) ACCEPT(cudaEventDestroy)

ACCEPT(cublasDestroy_v2) ACCEPT(cublasSetMathMode) ACCEPT(cublasSetPointerMode_v2) ACCEPT(cublasSetStream_v2)
ACCEPT(cublasSetWorkspace_v2) ACCEPT(cublasSetSmCountTarget)
ACCEPT(cublasLtMatmulDescDestroy) ACCEPT(cublasLtMatmulDescSetAttribute) ACCEPT(cublasLtMatrixLayoutDestroy)
ACCEPT(cublasLtMatrixLayoutSetAttribute) ACCEPT(cublasLtMatmulPreferenceDestroy)
ACCEPT(cublasLtMatmulPreferenceSetAttribute)
