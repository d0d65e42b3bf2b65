from babylm_train.babylm.preflight import main

if __name__ == "__main__":
    main()
